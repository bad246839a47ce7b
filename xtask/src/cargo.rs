//! Calling cargo: the one that runs us, on this checkout, whatever the current directory.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

/// The top of the checkout.
pub(crate) fn root() -> anyhow::Result<PathBuf> {
    let compiled = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    compiled.canonicalize().with_context(|| {
        format!(
            "the checkout is no longer at {}: run this through `cargo xtask`",
            compiled.display()
        )
    })
}

/// A call of cargo in the checkout.
pub(crate) fn cargo(args: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root()?);
    // What `cargo run` told us about this package would be taken for the next one's.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    Ok(command)
}

/// A call of the command `barchan`, built first.
///
/// Optimised like a release: it is also the one to install, and its figures are in the report.
pub(crate) fn barchan(args: &[&str]) -> anyhow::Result<Command> {
    let mut all = vec!["run", "--release", "--package", "barchan-cli", "--bin", "barchan", "--"];
    all.extend(args);
    cargo(&all)
}
