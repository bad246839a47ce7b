//! `cargo xtask paper`: `barchan bench paper` in an emulated machine, from nothing to the tables.
//!
//! A machine without VT-x or SVM can have the paper's tables too, as counts of instructions: Bochs counts them
//! exactly. Everything that the command needs is built here and brought into the guest, which has no compiler.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use barchan_boehm::SystemCollector;

use crate::guest::{Host, Series};
use crate::{cargo, guest, kmod, setup};

/// What Table 6 has, and at which part of the paper's sizes: what Bochs gets through in an hour or so.
const CASES: &[&str] = &["gcbench:1", "list:0.1", "hashmap:0.03", "xml:0.1"];

/// The interface that guest mode is entered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Over {
    /// `/dev/kvm`, by Linux's `kvm_intel`
    Kvm,
    /// `/dev/dune`, by the project's own module
    Dune,
}

/// `cargo xtask paper`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Cycles are instructions executed there, and Table 6 is in millions of them. The host is Bochs: VT-x and EPT.

  cargo xtask paper --micro                                Tables 2 and 3, a minute or two
  cargo xtask paper                                        Table 6, an hour or more
  cargo xtask paper --over dune --case hashmap:0.03 -- --config mprotect --config guest-pte

What follows -- goes to `barchan bench paper` (see its --help). The measurements are left in build/paper.")]
pub(crate) struct Args {
    /// Tables 2 and 3, instead of Table 6
    #[arg(long)]
    micro: bool,

    /// A workload of Table 6 and the part of the paper's size to run it at (may be repeated)
    #[arg(long = "case", value_name = "WORKLOAD:SCALE", conflicts_with = "micro",
          default_values_t = CASES.iter().map(|case| (*case).to_owned()))]
    cases: Vec<String>,

    /// How guest mode is entered
    #[arg(long, value_enum, default_value = "kvm")]
    over: Over,

    /// The kernel of the emulated machine
    #[arg(long, value_enum, default_value_t = Series::V6_1)]
    kernel: Series,

    /// How often everything is measured; counts repeat to some per mille
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u32,

    /// Seconds for the whole run
    #[arg(long, value_name = "S", default_value_t = 14_400)]
    timeout: u64,

    /// Do not look for missing packages
    #[arg(long)]
    skip_setup: bool,

    /// Options of `barchan bench paper`
    #[arg(last = true, value_name = "OPTIONS")]
    options: Vec<String>,
}

/// Runs the task.
pub(crate) fn command(args: &Args) -> anyhow::Result<ExitCode> {
    if !args.skip_setup {
        setup::install(setup::BUILD)?;
        setup::for_guests()?;
    }
    let root = cargo::root()?;
    let names = if args.micro {
        vec!["micro"]
    } else {
        args.cases.iter().map(|case| workload(case)).collect::<Result<_, _>>()?
    };
    let cases = if args.micro { String::new() } else { args.cases.join(" ") };
    let mut test = guest::guest_test();
    test.args(["--host", "bochs", "--skip-setup", "--memory", "2048"]);
    test.args(["--kernel", &args.kernel.to_string(), "--timeout", &args.timeout.to_string()]);
    let over = match args.over {
        Over::Kvm => "kvm",
        Over::Dune => {
            let module = kmod::build(args.kernel)?.join("dune.ko");
            test.args(["--no-kvm", "--env", "BARCHAN_DUNE_HOST=dune", "--module"]);
            test.arg(format!("{} {}", module.display(), kmod::PARAMETERS));
            "dune"
        }
    };
    for (file, target) in brought(&root, args.micro)? {
        test.arg("--file").arg(format!("{}:{target}", file.display()));
    }
    let left = root.join("build/paper");
    std::fs::create_dir_all(&left).with_context(|| format!("cannot make {}", left.display()))?;
    for name in names {
        let here = left.join(format!("bochs-{over}-{name}.json"));
        test.arg("--fetch").arg(format!("/tmp/paper-{name}.json:{}", here.display()));
    }
    test.args(["--env", &format!("CASES={cases}"), "--env", &format!("ROUNDS={}", args.rounds)]);
    test.arg("--").arg(root.join("xtask/src/guest/paper.sh"));
    if !args.micro && !args.options.iter().any(|option| option == "--pause-ms") {
        test.args(["--pause-ms", guest::pause_ms(Host::Bochs)]);
    }
    let status = test.args(&args.options).current_dir(&root).status();
    let status = status.context("cannot start the guest")?;
    if status.success() {
        println!("paper: the measurements are in {}; barchan report draws them", left.display());
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The workload of `WORKLOAD:SCALE`.
fn workload(case: &str) -> anyhow::Result<&str> {
    match case.split_once(':') {
        Some((name, scale))
            if scale.parse().is_ok_and(|scale: f64| scale > 0.0 && scale <= 1.0) =>
        {
            Ok(name)
        }
        _ => bail!("{case} is not WORKLOAD:SCALE, as list:0.1, with a scale above 0 and up to 1"),
    }
}

/// Builds what the command needs in the guest; each file, and where it goes.
fn brought(root: &Path, micro: bool) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut files = kmod::guest_mode(true)?;
    if micro {
        return Ok(files);
    }
    let built = cargo::barchan(&["build"])?.status().context("cannot start cargo")?;
    if !built.success() {
        bail!("barchan build failed");
    }
    for name in [
        "build/workloads/gcbench",
        "build/workloads/list",
        "build/workloads/hashmap",
        "build/workloads/xml",
        "build/collector/stock/prefix/lib/libgc.so.1",
        "build/collector/patched/prefix/lib/libgc.so.1",
        guest::PRELOAD,
        guest::PRELOAD_SOURCE,
    ] {
        files.push((root.join(name), format!("/barchan/{name}")));
    }
    match SystemCollector::find() {
        Ok(debians) => {
            let library = debians.library_dir().join("libgc.so.1");
            files.push((library.clone(), library.to_string_lossy().into_owned()));
        }
        Err(why) => println!("paper: without the distribution's collector: {why}"),
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_name_a_workload_and_a_scale() {
        assert_eq!(workload("list:0.1").ok(), Some("list"));
        for wrong in ["list", "list:", "list:0", "list:2", "list:x"] {
            assert!(workload(wrong).is_err(), "{wrong}");
        }
        assert!(CASES.iter().all(|case| workload(case).is_ok()));
    }
}
