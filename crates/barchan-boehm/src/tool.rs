//! Running the programs that a build needs: cargo, patch, cmake, cc, make.
//!
//! Output goes to a log file; on failure the end of the log is part of the error. A
//! program that is not installed gives the name of the Debian package that has it.
//! It is deliberately not a shell: arguments are passed as they are.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// How many of a failed program's last lines are shown.
const SHOWN_LINES: usize = 25;

/// A program to run, and where its output is kept.
#[derive(Debug)]
pub struct Tool {
    command: Command,
    program: String,
    log: Option<PathBuf>,
}

impl Tool {
    /// A run of `program`, in the C locale.
    pub fn new(program: impl Into<String>) -> Self {
        let program = program.into();
        let mut command = Command::new(&program);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        Self { command, program, log: None }
    }

    /// The cargo that runs us, or the one on the path.
    #[must_use]
    pub fn cargo() -> Self {
        let mut tool = Self::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
        // A cargo started by cargo inherits variables that describe the outer package.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                tool.command.env_remove(&name);
            }
        }
        tool
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable in the program's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in `dir`.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Keeps the output in `log` (and replaces what was there).
    #[must_use]
    pub fn log(mut self, log: impl Into<PathBuf>) -> Self {
        self.log = Some(log.into());
        self
    }

    /// Runs it and hands back its standard output.
    ///
    /// # Errors
    /// [`ErrorKind::ToolMissing`] if there is no such program, [`ErrorKind::ToolFailed`]
    /// if it does not exit with 0, [`ErrorKind::Io`] if the log cannot be written.
    pub fn run(mut self) -> Result<String> {
        let line = self.line();
        let output = self.command.output().map_err(|e| missing(&self.program, &line, &e))?;
        if let Some(log) = &self.log {
            write_log(log, &line, &output)?;
        }
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut tried = format!("{line}\n{}", tail(&output));
        if let Some(log) = &self.log {
            tried.push_str(&format!("\n(whole output: {})", log.display()));
        }
        Err(Error::new(
            ErrorKind::ToolFailed,
            format!("{} failed: {}", self.program, output.status),
        )
        .tried(tried))
    }

    /// The command line, for people.
    fn line(&self) -> String {
        let mut line = self.program.clone();
        for arg in self.command.get_args() {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }
}

/// The last lines of both outputs, errors last.
fn tail(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stdout.lines().chain(stderr.lines()).collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

fn write_log(log: &Path, line: &str, output: &Output) -> Result<()> {
    let fail = |e: std::io::Error| Error::io("write", log, &e);
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    let mut file = fs::File::create(log).map_err(fail)?;
    writeln!(file, "$ {line}").map_err(fail)?;
    file.write_all(&output.stdout).map_err(fail)?;
    file.write_all(&output.stderr).map_err(fail)
}

/// The error for a program that could not be started.
fn missing(program: &str, line: &str, source: &std::io::Error) -> Error {
    let package = match program {
        "cc" | "gcc" => "gcc",
        "c++" | "g++" => "g++",
        "readelf" | "nm" => "binutils",
        "cmake" | "make" | "patch" => program,
        _ => "",
    };
    let error =
        Error::new(ErrorKind::ToolMissing, format!("cannot start {program}: {source}")).tried(line);
    match package {
        "" => error.remedy(format!("install {program} and put it on the PATH")),
        package => error.remedy(format!("apt-get install {package}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_shows_the_end_of_the_output_and_where_the_rest_is() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let log = dir.path().join("log/sh.log");
        let error = Tool::new("sh")
            .args(["-c", "seq 100; echo broken >&2; exit 3"])
            .log(&log)
            .run()
            .expect_err("exit 3 is a failure");
        assert_eq!(error.kind(), ErrorKind::ToolFailed);
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("broken"), "{text}");
        assert!(!text.contains("\n    70\n") && text.contains("sh.log"), "{text}");
        assert!(fs::read_to_string(log).expect("log").contains("\n70\n"));
    }

    #[test]
    fn missing_program_names_its_package() {
        let error = missing("cmake", "cmake -S .", &std::io::ErrorKind::NotFound.into());
        assert!(error.to_string().contains("apt-get install cmake"), "{error}");
        let error = Tool::new("no-such-program-at-all").run().expect_err("not installed");
        assert_eq!(error.kind(), ErrorKind::ToolMissing);
    }
}
