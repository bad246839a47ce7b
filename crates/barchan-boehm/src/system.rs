//! The release that users have: Debian's `libgc1`, as it is installed.
//!
//! Found, never installed or copied.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::tool::Tool;

/// Where the distributions keep it on the architectures that Barchan runs on.
const PLACES: &[&str] =
    &["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];

/// The collector that the system has installed.
#[derive(Clone, Debug)]
pub struct SystemCollector {
    library_dir: PathBuf,
    version: Option<String>,
}

impl SystemCollector {
    /// Finds it.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] if it is not installed.
    pub fn find() -> Result<Self> {
        Self::find_in(PLACES.iter().map(Path::new))
    }

    fn find_in<'a>(mut places: impl Iterator<Item = &'a Path>) -> Result<Self> {
        let library_dir = places.find(|dir| dir.join("libgc.so.1").is_file()).ok_or_else(|| {
            Error::new(ErrorKind::Missing, "the system's own collector is not installed")
                .tried(format!("looked for libgc.so.1 in {}", PLACES.join(", ")))
                .remedy("apt-get install libgc1")
        })?;
        Ok(Self { library_dir: library_dir.to_path_buf(), version: package_version() })
    }

    /// The directory to put into `LD_LIBRARY_PATH`.
    #[must_use]
    pub fn library_dir(&self) -> &Path {
        &self.library_dir
    }

    /// The package's version, where dpkg knows it.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }
}

/// What dpkg says; `None` on another distribution.
fn package_version() -> Option<String> {
    let text =
        Tool::new("dpkg-query").args(["--show", "--showformat=${Version}", "libgc1"]).run().ok()?;
    let version = text.trim();
    (!version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_library_names_the_package() {
        let empty = tempfile::tempdir().expect("temporary directory");
        let error = SystemCollector::find_in([empty.path()].into_iter()).expect_err("nothing");
        assert_eq!(error.kind(), ErrorKind::Missing);
        assert!(error.to_string().contains("apt-get install libgc1"), "{error}");
    }

    #[test]
    fn the_first_place_that_has_it_wins() {
        let empty = tempfile::tempdir().expect("temporary directory");
        let full = tempfile::tempdir().expect("temporary directory");
        std::fs::write(full.path().join("libgc.so.1"), "").expect("write");
        let found = SystemCollector::find_in([empty.path(), full.path()].into_iter());
        assert_eq!(found.expect("there").library_dir(), full.path());
    }
}
