//! The debug kernel: Debian's source of Linux 6.1, configured to find bugs of a module (KASAN,
//! lockdep, sleeping in atomic context, kmemleak, UBSAN), and otherwise as small as the tests allow.
//!
//! It is built where it stays, `build/guest/kernel/debug`, once for each state of `debug.config`.
//! That takes 2 GB and some minutes, so the CI does not.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::debian::Apt;
use crate::setup;

const CONFIG: &str = include_str!("debug.config");
const PACKAGE: &str = "linux-source-6.1";

/// The release of the debug kernel in `dir`, built if it is not there or its configuration changed.
pub(crate) fn built(dir: &Path) -> anyhow::Result<String> {
    let (stamp, config) = (dir.join("release"), dir.join("config"));
    if let (Ok(release), Ok(used)) = (fs::read_to_string(&stamp), fs::read_to_string(&config)) {
        if used == CONFIG {
            return Ok(release.trim().to_owned());
        }
    }
    println!("guest: building the debug kernel in {}: some minutes, once", dir.display());
    setup::for_debug_kernel()?;
    fs::remove_file(&stamp).ok();
    let source = dir.join(PACKAGE);
    if !source.join("Makefile").exists() {
        fetch_source(dir)?;
    }
    let build = dir.join("build");
    fs::create_dir_all(&build).with_context(|| format!("cannot make {}", build.display()))?;
    // A name that make knows for a fragment: merged over tinyconfig.
    let fragment = source.join("arch/x86/configs/barchan.config");
    write(&fragment, CONFIG)?;
    fs::remove_file(build.join(".config")).ok();
    make(&source, &build, &["tinyconfig", "barchan.config"])?;
    check(&build.join(".config"))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    make(&source, &build, &[&format!("-j{jobs}"), "bzImage", "modules"])?;
    let release = make(&source, &build, &["kernelrelease"])?.trim().to_owned();
    let path = format!("INSTALL_MOD_PATH={}", dir.display());
    fs::remove_dir_all(dir.join("lib")).ok();
    make(&source, &build, &["modules_install", &path, "DEPMOD=true"])?;
    fs::create_dir_all(dir.join("boot")).context("cannot make the directory of the kernel")?;
    let image = dir.join("boot").join(format!("vmlinuz-{release}"));
    fs::copy(build.join("arch/x86/boot/bzImage"), &image)
        .with_context(|| format!("cannot write {}", image.display()))?;
    write(&config, CONFIG)?;
    write(&stamp, &release)?;
    Ok(release)
}

fn fetch_source(dir: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(dir).ok();
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Apt::update(dir.join("apt"))?.unpack(&[PACKAGE.to_owned()], dir)?;
    let archive = dir.join("usr/src").join(format!("{PACKAGE}.tar.xz"));
    let status = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(dir).status();
    if !status.context("cannot start tar")?.success() {
        bail!("tar cannot unpack {}", archive.display());
    }
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}

fn make(source: &Path, build: &Path, targets: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("make")
        .arg("--silent")
        .arg("-C")
        .arg(source)
        .arg(format!("O={}", build.display()))
        .arg("CC=gcc-12")
        .args(targets)
        .stdin(Stdio::null())
        .output()
        .context("cannot start make")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(20)..].join("\n");
        bail!("make {} failed for the debug kernel:\n{last}", targets.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether all that was asked for is in: what lacks something it depends on is dropped silently.
fn check(config: &Path) -> anyhow::Result<()> {
    let text =
        fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    let missing: Vec<_> = CONFIG
        .lines()
        .filter(|line| line.ends_with("=y") || line.ends_with("=m"))
        .filter(|wanted| !text.lines().any(|line| line == *wanted))
        .collect();
    if !missing.is_empty() {
        bail!("the kernel's configuration lacks {}", missing.join(", "));
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
