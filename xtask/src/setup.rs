//! `cargo xtask setup`: the Debian packages that a build and the tests need.
//!
//! It says what is missing and what for, then installs it with apt-get. With nothing missing
//! it does nothing and needs no privilege. Other distributions are told the names.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};

use crate::cargo;

/// A package and what it is needed for.
type Package = (&'static str, &'static str);

/// What a build and the benchmark need.
pub(crate) const BUILD: &[Package] = &[
    ("g++", "compiles the collector and its C++ interface"),
    ("cmake", "builds the collector"),
    ("make", "builds the collector and the workloads"),
    ("patch", "applies the patch series"),
    ("pkg-config", "finds the libraries"),
    ("libexpat1-dev", "parser of the XML workload"),
    ("libgc1", "the collector that users have: a baseline of the benchmark"),
    ("unicode-cldr-core", "real XML files to parse"),
];

/// What the tests need beyond that.
const TEST: &[Package] = &[
    ("libgc-dev", "compiles the workloads against the distribution's collector"),
    ("python3", "checks what the workloads print"),
    ("guile-3.0", "a real program on the collector"),
    ("w3m", "a real program on the collector"),
    ("ecl", "a real program on the collector"),
    ("nix-bin", "a real program on the collector"),
    ("crystal", "a compiler on the collector, whose programs are on it too"),
    ("sqlite3", "a real program in guest mode"),
    ("git", "a real program in guest mode"),
    ("libpython3.11-testsuite", "CPython's own tests, in guest mode"),
];

/// What the emulated hosts of `cargo xtask guest-test` need, beside their kernels.
const GUEST: &[Package] = &[
    ("qemu-system-x86", "emulates a machine with SVM"),
    ("seabios", "its firmware"),
    ("bochs", "emulates a machine with VMX"),
    ("bochs-term", "its display: a terminal that nobody sees"),
    ("bochsbios", "its firmware"),
    ("vgabios", "its firmware"),
    ("grub-common", "makes the CD that Bochs boots"),
    ("grub-pc-bin", "the boot loader on it"),
    ("xorriso", "makes the CD that Bochs boots"),
    ("mtools", "makes the CD that Bochs boots"),
    ("busybox-static", "the system of the guests"),
    ("xz-utils", "unpacks kernel modules"),
    ("binutils", "strips what goes into a guest"),
    ("make", "builds kernel modules"),
    ("gcc-12", "builds kernel modules, as Debian builds its kernels"),
    ("sparse", "checks kernel modules"),
    ("pahole", "building a module for Linux 6.12 calls it"),
];

/// What building the debug kernel of the guests needs.
const DEBUG_KERNEL: &[Package] = &[
    ("bison", "builds a kernel"),
    ("flex", "builds a kernel"),
    ("bc", "builds a kernel"),
    ("libelf-dev", "builds a kernel"),
    ("lz4", "compresses a kernel so that it is unpacked fast"),
    ("gcc-12", "builds a kernel"),
    ("make", "builds a kernel"),
    ("xz-utils", "unpacks its source"),
];

/// `cargo xtask setup`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also what the tests need
    #[arg(long)]
    test: bool,

    /// Only what the emulated hosts of guest-test need, and Debian's kernels for them
    #[arg(long)]
    guest: bool,
}

/// Runs the task.
pub(crate) fn command(args: &Args) -> anyhow::Result<ExitCode> {
    if args.guest {
        for_guests()?;
        crate::guest::fetch_kernels()?;
    } else if args.test {
        for_tests()?;
    } else {
        install(BUILD)?;
    }
    println!("setup: all there");
    Ok(ExitCode::SUCCESS)
}

/// Installs [`BUILD`], [`TEST`] and [`GUEST`], fetches the guests' kernels and two components of
/// the toolchain.
pub(crate) fn for_tests() -> anyhow::Result<()> {
    install(&[BUILD, TEST, GUEST].concat())?;
    crate::guest::fetch_kernels()?;
    fetch_amalgamation()?;
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let there = cargo::cargo(&[subcommand, "--version"])?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if there {
            continue;
        }
        println!("setup: the toolchain lacks {component}; rustup adds it");
        let status = Command::new("rustup").args(["component", "add", component]).status();
        if !status.is_ok_and(|status| status.success()) {
            bail!("cargo {subcommand} is missing: rustup component add {component}");
        }
    }
    Ok(())
}

/// Has cargo fetch the crate that brings sqlite3.c, which a test compiles in guest mode.
fn fetch_amalgamation() -> anyhow::Result<()> {
    let manifest = cargo::root()?.join("crates/barchan-cli/tests/dune/amalgamation/Cargo.toml");
    let mut fetch = cargo::cargo(&["fetch", "--quiet", "--locked", "--manifest-path"])?;
    let status = fetch.arg(&manifest).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo fetch --manifest-path {} failed ({status})", manifest.display());
    }
    Ok(())
}

/// Installs [`GUEST`].
pub(crate) fn for_guests() -> anyhow::Result<()> {
    install(GUEST)
}

/// Installs [`DEBUG_KERNEL`].
pub(crate) fn for_debug_kernel() -> anyhow::Result<()> {
    install(DEBUG_KERNEL)
}

/// Installs those of `packages` that are missing.
pub(crate) fn install(packages: &[Package]) -> anyhow::Result<()> {
    if !on_path("apt-get") || !on_path("dpkg-query") {
        let names: Vec<_> = packages.iter().map(|(name, _)| *name).collect();
        bail!(
            "this is not Debian (no apt-get, no dpkg-query): install what Debian calls\n  {}\n\
             by your distribution's means, then run this again with --skip-setup",
            names.join(" ")
        );
    }
    let missing: Vec<Package> =
        packages.iter().filter(|(name, _)| !installed(name)).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: these Debian packages are missing and will be installed:");
    for (name, purpose) in &missing {
        println!("  {name:<18} {purpose}");
    }
    std::io::stdout().flush().context("cannot write to standard output")?;
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    apt_get(&["update"], &names)?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&names);
    apt_get(&install, &names)
}

fn apt_get(args: &[&str], packages: &[&str]) -> anyhow::Result<()> {
    let by_hand = || format!("by hand: apt-get update && apt-get install {}", packages.join(" "));
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("env")
    } else if on_path("sudo") {
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    } else {
        bail!("not root, and there is no sudo; as root, {}", by_hand());
    };
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--quiet"])
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(args);
    let status = command.status().context("cannot start apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed ({status}); {}", args.join(" "), by_hand());
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into()])
        .any(|dir| dir.join(program).is_file())
}

/// Whether dpkg has `package` installed; a removed one whose settings are left is not.
fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}\n", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|o| String::from_utf8_lossy(&o.stdout).lines().any(|l| l == "installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_and_unknown_packages_are_told_apart() {
        if !on_path("dpkg-query") {
            eprintln!("SKIPPED: not Debian, no dpkg-query");
            return;
        }
        assert!(installed("dpkg"));
        assert!(!installed("no-such-package-of-barchan"));
    }

    #[test]
    fn programs_are_looked_for_on_the_path() {
        assert!(on_path("sh"));
        assert!(!on_path("no-such-program-of-barchan"));
    }
}
