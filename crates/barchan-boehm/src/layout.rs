//! Where things are: the checkout, its inputs, and the build directory.
//!
//! Every path that the builder and the command use is written down here and
//! nowhere else. Only the build directory is written to, and cargo's own.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::flavour::Flavour;

/// The paths of one checkout of the project.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The checkout at `root`.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] if `root` holds no `boehm-patch/upstream/Cargo.toml`.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let root = root.canonicalize().map_err(|e| Error::io("find", &root, &e))?;
        let layout = Self { root };
        let pin = layout.upstream_manifest();
        if !pin.is_file() {
            return Err(Error::new(
                ErrorKind::Missing,
                format!("{} is not a checkout of Barchan", layout.root.display()),
            )
            .tried(format!("looked for {}", pin.display()))
            .remedy("give the checkout's path with --root or in BARCHAN_ROOT"));
        }
        Ok(layout)
    }

    /// The checkout that this crate was compiled in; right until it is moved.
    #[must_use]
    pub fn compiled_root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// The top of the checkout.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The manifest that pins the upstream crate.
    #[must_use]
    pub fn upstream_manifest(&self) -> PathBuf {
        self.root.join("boehm-patch/upstream/Cargo.toml")
    }

    /// The file with the pinned hash of the upstream tree.
    #[must_use]
    pub fn upstream_hash(&self) -> PathBuf {
        self.root.join("boehm-patch/upstream/tree.sha256")
    }

    /// The directory of the patch series.
    #[must_use]
    pub fn series(&self) -> PathBuf {
        self.root.join("boehm-patch/series")
    }

    /// The crate with the library's C interface.
    #[must_use]
    pub fn barchan_c(&self) -> PathBuf {
        self.root.join("crates/barchan-c")
    }

    /// The sources of the benchmark programs.
    #[must_use]
    pub fn workloads_source(&self) -> PathBuf {
        self.root.join("workloads")
    }

    /// The object that notes what the collector of an unmodified program does.
    #[must_use]
    pub fn preload(&self) -> PathBuf {
        self.build().join("preload/libbarchan-summary.so")
    }

    /// What moves programs into guest mode, where cargo puts it.
    #[must_use]
    pub fn dune_library(&self) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| self.root.join("target"), PathBuf::from);
        target.join("release/libbarchan_dune.so")
    }

    /// The build directory, the only place that is written to but for cargo's.
    #[must_use]
    pub fn build(&self) -> PathBuf {
        self.root.join("build")
    }

    /// Where the benchmark programs are built.
    #[must_use]
    pub fn workloads(&self) -> PathBuf {
        self.build().join("workloads")
    }

    /// Where one flavour of the collector is built.
    #[must_use]
    pub fn collector(&self, flavour: Flavour) -> PathBuf {
        self.build().join("collector").join(flavour.name())
    }

    /// The install prefix of one flavour.
    #[must_use]
    pub fn prefix(&self, flavour: Flavour) -> PathBuf {
        self.collector(flavour).join("prefix")
    }

    /// The directory to put into `LD_LIBRARY_PATH` to run under one flavour.
    #[must_use]
    pub fn library_dir(&self, flavour: Flavour) -> PathBuf {
        self.prefix(flavour).join("lib")
    }
}
