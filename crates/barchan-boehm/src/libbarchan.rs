//! Barchan's C library: building it for the collector to link, and installing it.
//!
//! The collector takes the static library in, so that `libgc.so.1` needs no second
//! file at run time. The prefix of the patched flavour gets the shared and the static
//! library, the header and `barchan.pc` as well, for programs that track writes
//! themselves.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::tool::Tool;
use crate::tree::{hash_file, hash_tree};

/// The name under which programs look for the shared library at run time.
pub const SONAME: &str = "libbarchan.so.0";

/// A build of the C library.
#[derive(Clone, Debug)]
pub struct LibBarchan {
    static_lib: PathBuf,
    shared_lib: PathBuf,
    include: PathBuf,
    pc_template: PathBuf,
}

impl LibBarchan {
    /// Builds the library in release mode; cargo does nothing if it is up to date.
    ///
    /// # Errors
    /// [`ErrorKind::ToolFailed`] if cargo fails, [`ErrorKind::BadResult`] if it makes no
    /// library.
    pub fn build(layout: &Layout) -> Result<Self> {
        let said = Tool::cargo()
            .args(["build", "--release", "--package", "barchan-c"])
            .arg("--message-format=json-render-diagnostics")
            .arg("--manifest-path")
            .arg(layout.root().join("Cargo.toml"))
            .run()?;
        let artifact = |suffix: &str| {
            find_artifact(&said, suffix).ok_or_else(|| {
                Error::new(ErrorKind::BadResult, format!("barchan-c was built without a {suffix}"))
                    .tried("cargo build --release --package barchan-c")
                    .remedy("its Cargo.toml needs crate-type = [\"cdylib\", \"staticlib\"]")
            })
        };
        let include = layout.barchan_c().join("include");
        let header = include.join("barchan.h");
        if !header.is_file() {
            return Err(Error::new(ErrorKind::Missing, format!("no {}", header.display()))
                .remedy("restore it from version control, or build barchan-c with cbindgen"));
        }
        Ok(Self {
            static_lib: artifact(".a")?,
            shared_lib: artifact(".so")?,
            include,
            pc_template: layout.barchan_c().join("barchan.pc.in"),
        })
    }

    /// The static library.
    #[must_use]
    pub fn static_lib(&self) -> &Path {
        &self.static_lib
    }

    /// The directory with `barchan.h`.
    #[must_use]
    pub fn include(&self) -> &Path {
        &self.include
    }

    /// A hash over what the collector is built from: the static library and the header.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn hash(&self) -> Result<String> {
        Ok(format!("{} {}", hash_file(&self.static_lib)?, hash_tree(&self.include)?))
    }

    /// Installs the libraries, the header and `barchan.pc` below `prefix`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn install(&self, prefix: &Path) -> Result<()> {
        let lib = prefix.join("lib");
        let pkgconfig = lib.join("pkgconfig");
        let include = prefix.join("include");
        for dir in [&pkgconfig, &include] {
            fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, &e))?;
        }
        copy(&self.static_lib, &lib.join("libbarchan.a"))?;
        copy(&self.shared_lib, &lib.join(SONAME))?;
        copy(&self.include.join("barchan.h"), &include.join("barchan.h"))?;
        let link = lib.join("libbarchan.so");
        match fs::remove_file(&link) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("replace", &link, &e));
            }
            _ => symlink(SONAME, &link).map_err(|e| Error::io("create", &link, &e))?,
        }
        let pc = pkgconfig.join("barchan.pc");
        let text = fs::read_to_string(&self.pc_template)
            .map_err(|e| Error::io("read", &self.pc_template, &e))?;
        fs::write(&pc, pkg_config(&text, prefix)).map_err(|e| Error::io("write", &pc, &e))
    }
}

/// The text of `barchan.pc` for a prefix, from its template.
fn pkg_config(template: &str, prefix: &Path) -> String {
    template
        .replace("@prefix@", &prefix.display().to_string())
        .replace("@libdir@", "${exec_prefix}/lib")
        .replace("@includedir@", "${prefix}/include")
        .replace("@version@", env!("CARGO_PKG_VERSION"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(|e| {
        Error::new(ErrorKind::Io, format!("cannot install {}: {e}", to.display()))
            .tried(format!("copy from {}", from.display()))
    })
}

/// The file of package barchan-c that ends in `suffix`, from cargo's messages.
fn find_artifact(messages: &str, suffix: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|m| m["reason"] == "compiler-artifact" && m["target"]["name"] == "barchan_c")
        .flat_map(|m| m["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|name| name.as_str().map(PathBuf::from))
        .find(|path| path.to_string_lossy().ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_filled_in() {
        let text = "prefix=@prefix@\nlibdir=@libdir@\nCflags: -I@includedir@\nVersion: @version@\n";
        let filled = pkg_config(text, Path::new("/opt/x"));
        assert!(filled.starts_with("prefix=/opt/x\nlibdir=${exec_prefix}/lib\n"), "{filled}");
        assert!(!filled.contains('@'), "{filled}");
    }

    #[test]
    fn artifacts_are_found_among_cargo_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"libc"},"filenames":["/x/l.a"]}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"barchan_c"},"#,
            r#""filenames":["/t/libbarchan_c.so","/t/libbarchan_c.a"]}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#
        );
        assert_eq!(find_artifact(messages, ".a"), Some(PathBuf::from("/t/libbarchan_c.a")));
        assert_eq!(find_artifact(messages, ".so"), Some(PathBuf::from("/t/libbarchan_c.so")));
        assert_eq!(find_artifact(messages, ".rlib"), None);
    }
}
