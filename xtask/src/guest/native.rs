//! The host `native`: the test runs on this machine, as it is, with a time limit.
//!
//! Nothing is booted, so there is no kernel log of the run's own to look at, and no module
//! is loaded: this machine's kernel is not ours to change.

use std::fs::OpenOptions;
use std::process::{Command, ExitCode};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::bail;

use super::Args;
use super::payload::Payload;
use crate::step::{self, End};

/// Why this machine cannot run guests, if it cannot.
pub(crate) fn unusable() -> Option<String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/kvm cannot be opened ({error})")),
    }
}

pub(crate) fn run(
    args: &Args,
    payload: &Payload,
    interrupted: &AtomicBool,
) -> anyhow::Result<ExitCode> {
    if !args.modules.is_empty() || !args.files.is_empty() || !args.fetch.is_empty() {
        bail!("--module, --file and --fetch are for the emulated hosts; native runs in place");
    }
    if let Some(why) = unusable() {
        bail!("no native host: {why}");
    }
    let start = Instant::now();
    let mut failures = Vec::new();
    for test in &payload.tests {
        println!("guest: {} on this machine", test.program.display());
        let mut command = Command::new(&test.program);
        command.args(&test.arguments);
        command.envs(test.environment.iter().map(|(name, value)| (name, value)));
        match step::run(command, args.limit(), interrupted, |_| {})? {
            End::Success => {}
            End::Failure(why) => failures.push(format!("{}: {why}", test.name())),
            End::Interrupted => return Ok(ExitCode::from(130)),
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if failures.is_empty() {
        println!("guest: native: passed in {seconds:.1} s");
        return Ok(ExitCode::SUCCESS);
    }
    println!("guest: native: FAILED after {seconds:.1} s: {}", failures.join("; "));
    Ok(ExitCode::FAILURE)
}
