//! `cargo xtask`: what is done with this checkout, by people and by the CI alike.
//!
//! | Module | Holds |
//! |---|---|
//! | `setup` | the system packages that a build and the tests need |
//! | `bench` | the benchmark, from nothing to the report |
//! | `ci` | all checks and tests, counted |
//! | `guest` | tests where virtualization is, real or emulated |
//! | `header` | the C header, generated again |
//! | `kmod` | the kernel module: built and tested |
//! | `paper` | Dune's tables again, in an emulated machine |
//! | `stress` | the collector's long run |
//! | `step` | running a program with a time limit |
//! | `tally` | counting tests in what they print |
//! | `cargo` | calling the cargo that runs us |
//!
//! It is deliberately thin: whatever a user might want lives in the command `barchan`; here
//! is only what needs a checkout and a compiler.

#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod ci;
mod guest;
mod header;
mod kmod;
mod paper;
mod setup;
mod step;
mod stress;
mod tally;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the Barchan checkout.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "\
Start with:
  cargo xtask bench          the collectors side by side, in a few minutes
  cargo xtask ci             every check and every test, as the CI runs them
  cargo xtask bench --full   the benchmark at full size (an hour or more)

Both begin with `setup`, which says which packages it installs and does nothing if all are
there. Exit codes: 0 success, 1 failure, 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The tasks.
#[derive(Debug, Subcommand)]
enum Command {
    /// Install the Debian packages that are missing
    Setup(setup::Args),
    /// Build the collectors, run the benchmark, write build/report.html and build/report.json
    Bench(bench::Args),
    /// Run every check and every test; the last line is `N passed, N failed`
    Ci(ci::Args),
    /// Run a test on a host with virtualization: this machine's, or an emulated one
    GuestTest(Box<guest::Args>),
    /// Generate crates/barchan-c/include/barchan.h from the sources
    Header,
    /// Run the mutator that notices one lost object, on every setting of the collector
    Stress(stress::Args),
    /// Build the kernel module against every kernel, and run its selftests in Bochs
    Kmod(kmod::Args),
    /// Make Dune's tables again in an emulated machine with VT-x, as counts of instructions
    Paper(paper::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Setup(args) => setup::command(&args),
        Command::Bench(args) => bench::command(args),
        Command::Ci(args) => ci::command(&args),
        Command::GuestTest(args) => guest::command(&args),
        Command::Header => header::command(),
        Command::Stress(args) => stress::command(&args),
        Command::Kmod(args) => kmod::command(&args),
        Command::Paper(args) => paper::command(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
