//! `cargo xtask bench`: from a fresh checkout to the table and the report.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::{cargo, setup};

/// Where the measurements and the page go unless told otherwise.
const DEFAULTS: &[(&str, &str)] =
    &[("--json", "build/report.json"), ("--html", "build/report.html")];

/// `cargo xtask bench`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Everything else is passed on to `barchan bench`, for instance:
  cargo xtask bench --workload hashmap --rounds 3
  cargo xtask bench --full --config barchan --config debian
  cargo xtask bench --list")]
pub(crate) struct Args {
    /// The sizes of the paper and five rounds, instead of small sizes and one round
    #[arg(long)]
    full: bool,

    /// Do not look for missing packages
    #[arg(long)]
    skip_setup: bool,

    /// Options of `barchan bench` (see `target/release/barchan bench --help`)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<OsString>,
}

/// Runs the task; the benchmark takes this process over, so that its exit code, its terminal
/// and an interrupt of the user are its own.
pub(crate) fn command(args: Args) -> anyhow::Result<ExitCode> {
    let Args { mut full, mut skip_setup, mut options } = args;
    options.retain(|option| {
        let ours = [("--full", &mut full), ("--skip-setup", &mut skip_setup)]
            .into_iter()
            .find(|(name, _)| option == *name);
        ours.map(|(_, flag)| *flag = true).is_none()
    });
    if !skip_setup {
        setup::install(setup::BUILD)?;
    }
    let mut command = cargo::barchan(&["bench"])?;
    if !full && !given(&options, "--quick") && !given(&options, "--scale") {
        command.arg("--quick");
    }
    for (option, file) in DEFAULTS {
        if !given(&options, option) {
            command.args([option, file]);
        }
    }
    Err(command.args(&options).exec()).context("cannot start cargo")
}

/// Whether the user gave `option`, as `--option value` or `--option=value`.
fn given(options: &[OsString], option: &str) -> bool {
    options.iter().filter_map(|o| o.to_str()).any(|o| {
        o.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_in_both_spellings() {
        let options = ["--json=x", "--html", "y"].map(OsString::from);
        assert!(given(&options, "--json") && given(&options, "--html"));
        assert!(!given(&options, "--js") && !given(&options, "--quick"));
    }
}
