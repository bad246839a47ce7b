//! The upstream source: where it comes from, and that it is the one that is pinned.
//!
//! Cargo does the fetching, so mirrors, proxies and vendored sources work as they do
//! for every other crate. Cargo checks the archive when it unpacks it, once; the tree
//! in its cache can be edited afterwards, so the tree is hashed before every use.
//! Nothing is written into it: [`Upstream::source`] is to be copied.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::tool::Tool;
use crate::tree::hash_tree;

/// The variable that names a checkout to use in place of the pinned source.
pub const OVERRIDE: &str = "BARCHAN_BDWGC";

/// The crate that carries the source.
const CRATE: &str = "bdwgc-alloc-sys";

/// A source tree of the collector, verified.
#[derive(Clone, Debug)]
pub struct Upstream {
    source: PathBuf,
    hash: String,
    pinned: bool,
}

impl Upstream {
    /// Finds and verifies the source: the checkout that [`OVERRIDE`] names, if it is
    /// set, else the pinned crate, which is fetched if this machine lacks it.
    ///
    /// # Errors
    /// [`ErrorKind::Fetch`], [`ErrorKind::HashMismatch`], [`ErrorKind::Missing`].
    pub fn acquire(layout: &Layout, progress: &mut dyn FnMut(&str)) -> Result<Self> {
        match std::env::var_os(OVERRIDE).filter(|path| !path.is_empty()) {
            Some(path) => {
                let upstream = Self::from_checkout(Path::new(&path))?;
                progress(&format!(
                    "upstream: {} ({OVERRIDE} is set: not the pinned source)",
                    upstream.source.display()
                ));
                Ok(upstream)
            }
            None => {
                let vendor = locate_crate(layout, progress)?.join("vendor");
                let upstream = Self::from_vendor(&vendor, &pinned_hash(layout)?)?;
                progress(&format!("upstream: {CRATE}, tree {}, verified", &upstream.hash[..12]));
                Ok(upstream)
            }
        }
    }

    /// The pinned source below a crate's `vendor` directory.
    ///
    /// # Errors
    /// [`ErrorKind::HashMismatch`] if the tree's hash is not `pinned`.
    pub fn from_vendor(vendor: &Path, pinned: &str) -> Result<Self> {
        let hash = hash_tree(vendor)?;
        if hash != pinned {
            return Err(Error::new(
                ErrorKind::HashMismatch,
                format!("the upstream source in {} is not the pinned one", vendor.display()),
            )
            .tried(format!("SHA-256 of the tree\nexpected {pinned}\nfound    {hash}"))
            .remedy(format!(
                "something edited cargo's cache: remove the directory {} and build again;\n\
                 to build from a source of your own, set {OVERRIDE} to its path",
                vendor.parent().unwrap_or(vendor).display()
            )));
        }
        Ok(Self { source: vendor.join("bdwgc"), hash, pinned: true })
    }

    /// A checkout of bdwgc, as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] if it does not look like one.
    pub fn from_checkout(path: &Path) -> Result<Self> {
        for wanted in ["CMakeLists.txt", "include/gc/gc.h", "os_dep.c"] {
            if !path.join(wanted).is_file() {
                return Err(Error::new(
                    ErrorKind::Missing,
                    format!("{} holds no source of bdwgc", path.display()),
                )
                .tried(format!("{OVERRIDE} names it; looked for {wanted} there"))
                .remedy(format!(
                    "set {OVERRIDE} to a checkout of bdwgc 8.3 or later, or unset it"
                )));
            }
        }
        let source = path.canonicalize().map_err(|e| Error::io("find", path, &e))?;
        let hash = hash_tree(&source)?;
        Ok(Self { source, hash, pinned: false })
    }

    /// The directory with the collector's source. Not to be written to.
    #[must_use]
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The hash of the tree.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether this is the pinned source, not a checkout given by the user.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }
}

/// The hash that the checkout pins.
fn pinned_hash(layout: &Layout) -> Result<String> {
    let path = layout.upstream_hash();
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
    let hash = text.trim();
    if hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(hash.to_owned());
    }
    Err(Error::new(ErrorKind::Missing, format!("{} holds no SHA-256", path.display()))
        .tried("expected 64 hexadecimal digits")
        .remedy("restore the file from version control"))
}

/// The directory of the unpacked crate, fetched if need be.
fn locate_crate(layout: &Layout, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let manifest = layout.upstream_manifest();
    let metadata = |manifest: &Path| {
        Tool::cargo()
            .args(["metadata", "--format-version=1", "--locked", "--offline", "--manifest-path"])
            .arg(manifest)
            .run()
    };
    let text = match metadata(&manifest) {
        Ok(text) => text,
        Err(_) => {
            progress(&format!("upstream: fetching {CRATE} from the crate registry"));
            Tool::cargo()
                .args(["fetch", "--locked", "--manifest-path"])
                .arg(&manifest)
                .run()
                .map_err(|e| {
                    Error::new(ErrorKind::Fetch, "cannot get the collector's upstream source")
                        .tried(e.to_string())
                        .remedy(format!(
                            "run this once while online, or set {OVERRIDE} to a checkout of bdwgc"
                        ))
                })?;
            metadata(&manifest)?
        }
    };
    let unexpected = || {
        Error::new(ErrorKind::Fetch, format!("cargo's metadata does not mention {CRATE}"))
            .tried(format!("cargo metadata --manifest-path {}", manifest.display()))
            .remedy("restore boehm-patch/upstream from version control")
    };
    let metadata: Value = serde_json::from_str(&text).map_err(|_| unexpected())?;
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == CRATE)
        .and_then(|package| package["manifest_path"].as_str())
        .and_then(|path| Path::new(path).parent().map(Path::to_path_buf))
        .ok_or_else(unexpected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vendor() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(dir.path().join("bdwgc")).expect("mkdir");
        fs::write(dir.path().join("bdwgc/os_dep.c"), "int dirty;\n").expect("write");
        dir
    }

    #[test]
    fn a_changed_byte_is_refused() {
        let dir = vendor();
        let pinned = hash_tree(dir.path()).expect("hash");
        let upstream = Upstream::from_vendor(dir.path(), &pinned).expect("the pinned tree is fine");
        assert!(upstream.is_pinned());
        assert_eq!(upstream.source(), dir.path().join("bdwgc"));

        fs::write(dir.path().join("bdwgc/os_dep.c"), "int dirtx;\n").expect("write");
        let error = Upstream::from_vendor(dir.path(), &pinned).expect_err("one byte differs");
        assert_eq!(error.kind(), ErrorKind::HashMismatch);
        let found = hash_tree(dir.path()).expect("hash");
        let text = error.to_string();
        assert!(text.contains(&pinned) && text.contains(&found), "{text}");
    }

    #[test]
    fn an_added_file_is_refused() {
        let dir = vendor();
        let pinned = hash_tree(dir.path()).expect("hash");
        fs::write(dir.path().join("bdwgc/extra.c"), "").expect("write");
        let error = Upstream::from_vendor(dir.path(), &pinned).expect_err("one file too many");
        assert_eq!(error.kind(), ErrorKind::HashMismatch);
    }

    #[test]
    fn a_checkout_is_taken_as_it_is() {
        let dir = vendor();
        let source = dir.path().join("bdwgc");
        fs::create_dir_all(source.join("include/gc")).expect("mkdir");
        for name in ["CMakeLists.txt", "include/gc/gc.h"] {
            fs::write(source.join(name), "").expect("write");
        }
        let upstream = Upstream::from_checkout(&source).expect("a checkout");
        assert!(!upstream.is_pinned());
        assert_eq!(upstream.hash(), hash_tree(&source).expect("hash"));
    }

    #[test]
    fn a_directory_without_a_collector_is_no_checkout() {
        let dir = vendor();
        let error = Upstream::from_checkout(dir.path()).expect_err("no CMakeLists.txt");
        assert_eq!(error.kind(), ErrorKind::Missing);
        assert!(error.to_string().contains("CMakeLists.txt"), "{error}");
    }
}
