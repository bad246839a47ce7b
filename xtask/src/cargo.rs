//! Calling cargo: the one that runs us, on this checkout, whatever the current directory.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

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

/// Builds a test or a program of a package, and returns its path.
///
/// `target` is `--test NAME`, `--bin NAME` or `--lib` (the unit tests).
pub(crate) fn test_program(
    package: &str,
    target: &[&str],
    release: bool,
) -> anyhow::Result<PathBuf> {
    let what = if target.first() == Some(&"--bin") { "build" } else { "test" };
    let mut command = cargo(&[what, "--package", package, "--message-format", "json"])?;
    command.args(target);
    if what == "test" {
        command.arg("--no-run");
    }
    if release {
        command.arg("--release");
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo {what} -p {package} {} failed", target.join(" "));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let wanted = target.get(1).copied();
    executable(&text, wanted)
        .with_context(|| format!("cargo did not say where {package}'s {} is", target.join(" ")))
}

/// Builds the shared library `name` of a package, optimised, and returns its path.
pub(crate) fn shared_library(package: &str, name: &str) -> anyhow::Result<PathBuf> {
    let output = cargo(&["build", "--release", "--package", package, "--message-format", "json"])?
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo build --release -p {package} failed");
    }
    let file = format!("lib{name}.so");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut built = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let names = message.get("filenames")?.as_array()?.clone();
        names
            .iter()
            .filter_map(|path| path.as_str())
            .map(PathBuf::from)
            .find(|path| path.ends_with(&file))
    });
    built.next_back().with_context(|| format!("cargo did not say where {package}'s {file} is"))
}

/// The last executable in cargo's messages, of the target `name` if one is given.
fn executable(messages: &str, name: Option<&str>) -> Option<PathBuf> {
    let mut messages = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let path = message.get("executable")?.as_str()?;
        let target = message.get("target")?.get("name")?.as_str()?;
        (name.is_none() || name == Some(target)).then(|| PathBuf::from(path))
    });
    messages.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"x"},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"x"},"executable":"/t/x-1"}
            {"reason":"compiler-artifact","target":{"name":"y"},"executable":"/t/y-1"}
            {"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, Some("x")), Some("/t/x-1".into()));
        assert_eq!(executable(messages, None), Some("/t/y-1".into()));
        assert_eq!(executable(messages, Some("z")), None);
    }
}
