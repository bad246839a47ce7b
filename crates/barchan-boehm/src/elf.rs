//! What a built shared library says of itself: its soname and what it exports.
//!
//! Read with binutils, which every C compiler brings along.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::tool::Tool;

/// The soname of a shared library.
///
/// # Errors
/// [`ErrorKind::BadResult`] if it has none; as [`Tool::run`].
pub fn soname(library: &Path) -> Result<String> {
    let dynamic = Tool::new("readelf").args(["--dynamic", "--wide"]).arg(library).run()?;
    dynamic
        .lines()
        .find(|line| line.contains("(SONAME)"))
        .and_then(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
        .ok_or_else(|| {
            Error::new(ErrorKind::BadResult, format!("{} has no soname", library.display()))
        })
}

/// The symbols that a shared library exports, without versions.
///
/// # Errors
/// As [`Tool::run`].
pub fn exports(library: &Path) -> Result<BTreeSet<String>> {
    let text = Tool::new("nm").args(["--dynamic", "--defined-only", "-P"]).arg(library).run()?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(|name| name.split('@').next().unwrap_or(name).to_owned())
        .collect())
}
