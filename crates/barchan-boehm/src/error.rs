//! The builder's error: what failed, what had been tried, and what to do about it.
//!
//! One type serves the whole crate because every failure ends in the same place,
//! in front of a person at a terminal; [`ErrorKind`] tells the cases apart for
//! code that has to. It is deliberately not a chain of causes: the text of the
//! cause is part of `tried`.

use std::fmt;
use std::path::Path;

/// What kind of thing went wrong while building the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or directory could not be read or written.
    Io,
    /// The upstream source is not on this machine and could not be fetched.
    Fetch,
    /// The source is not the one that is pinned.
    HashMismatch,
    /// A patch does not apply exactly.
    PatchRefused,
    /// A program that the build needs is not installed.
    ToolMissing,
    /// A program that the build runs failed.
    ToolFailed,
    /// The build went through, but its result is not what was asked for.
    BadResult,
    /// Something that only the user can provide is missing.
    Missing,
}

/// A failure of the builder, fit to be shown as it is.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    tried: Option<String>,
    remedy: Option<String>,
}

/// The builder's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error that says `what` failed, as one clause without a full stop.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), tried: None, remedy: None }
    }

    /// Adds what had been tried.
    #[must_use]
    pub fn tried(mut self, tried: impl Into<String>) -> Self {
        self.tried = Some(tried.into());
        self
    }

    /// Adds what the reader can do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// An error of the file system: `verb` reads like "read" or "create".
    pub fn io(verb: &str, path: &Path, source: &std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("cannot {verb} {}: {source}", path.display()))
    }

    /// The case, for code that has to tell the cases apart.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for (label, text) in [("tried", &self.tried), ("do this", &self.remedy)] {
            let Some(text) = text else { continue };
            let mut lines = text.lines();
            write!(f, "\n  {label}: {}", lines.next().unwrap_or_default())?;
            for line in lines {
                write!(f, "\n    {line}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
