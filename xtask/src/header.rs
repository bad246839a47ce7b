//! `cargo xtask header`: the C header, from the Rust sources.
//!
//! The test that compares the header also writes it; this only calls it, so that there is
//! one generator.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::cargo;

/// Runs the task.
pub(crate) fn command() -> anyhow::Result<ExitCode> {
    let status = cargo::cargo(&["test", "--quiet", "--package", "barchan-c", "--test", "header"])?
        .env("BARCHAN_WRITE_HEADER", "1")
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        return Ok(ExitCode::FAILURE);
    }
    println!("crates/barchan-c/include/barchan.h is what the sources say");
    Ok(ExitCode::SUCCESS)
}
