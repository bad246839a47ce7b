//! Building one flavour of the collector: copy, patch, configure, compile, install.
//!
//! The source is copied into the flavour's directory, which is the only place that is
//! written to. Shared and static libraries come from two cmake trees, since upstream
//! builds one or the other (Debian does the same). A stamp with the hash of all inputs
//! is written last: a build that is up to date is skipped, one that was interrupted is
//! done again. A lock keeps two builders out of each other's way.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::elf;
use crate::error::{Error, ErrorKind, Result};
use crate::flavour::Flavour;
use crate::layout::Layout;
use crate::libbarchan::LibBarchan;
use crate::series::{self, Fit};
use crate::tool::Tool;
use crate::tree::{copy_tree, hash_file, hash_tree, hex};
use crate::upstream::Upstream;

/// Raised when the steps of a build change, so that old builds are done again.
const RECIPE: &str = "barchan-boehm recipe 2";

/// The libraries that programs load, all of them with this soname.
const SHARED: &[&str] = &["libgc.so.1", "libgccpp.so.1", "libcord.so.1"];

/// What only the tree of the shared libraries is configured with: all of the collector in
/// one translation unit, as Debian builds its `libgc.so.1` (upstream's configure does so
/// where no static library is built beside it).
const SHARED_TREE: &[&str] =
    &["GC_BUILD_SHARED_LIBS=ON", "BUILD_TESTING=ON", "enable_single_obj_compilation=ON"];
/// The static libraries.
const STATIC: &[&str] = &["libgc.a", "libgccpp.a", "libgctba.a", "libcord.a"];

/// A flavour of the collector, built and installed.
#[derive(Clone, Debug)]
pub struct Collector {
    flavour: Flavour,
    directory: PathBuf,
}

impl Collector {
    /// The flavour if it has been built, up to date or not.
    #[must_use]
    pub fn built(layout: &Layout, flavour: Flavour) -> Option<Self> {
        let directory = layout.collector(flavour);
        directory.join("stamp").is_file().then_some(Self { flavour, directory })
    }

    /// Whether it was built from the patches and the library as `layout` has them now.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn is_current(&self, layout: &Layout) -> Result<bool> {
        let built_from = fs::read_to_string(self.directory.join("sources"));
        Ok(!self.flavour.is_patched() || built_from.ok() == Some(sources(layout)?))
    }

    /// Which flavour this is.
    #[must_use]
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// The install prefix.
    #[must_use]
    pub fn prefix(&self) -> PathBuf {
        self.directory.join("prefix")
    }

    /// The directory to put into `LD_LIBRARY_PATH`.
    #[must_use]
    pub fn library_dir(&self) -> PathBuf {
        self.prefix().join("lib")
    }

    /// The directory with bdwgc's own test programs, built against the shared library.
    #[must_use]
    pub fn tests_dir(&self) -> PathBuf {
        self.directory.join("shared")
    }

    /// The names of the programs in [`Self::tests_dir`] that bdwgc's build declares as tests.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]; [`ErrorKind::Missing`] if the list names no program somewhere.
    pub fn declared_tests(&self) -> Result<Vec<String>> {
        let list = self.tests_dir().join("CTestTestfile.cmake");
        let text = fs::read_to_string(&list).map_err(|e| Error::io("read", &list, &e))?;
        let name = |line: &str| {
            let path = Path::new(line.split('"').nth(1)?);
            Some(path.file_name()?.to_string_lossy().into_owned())
        };
        let declared = text.lines().filter_map(|line| line.strip_prefix("add_test("));
        declared.map(name).collect::<Option<_>>().ok_or_else(|| {
            let what = format!("{} declares a test without a program", list.display());
            Error::new(ErrorKind::Missing, what)
        })
    }

    /// The hash of everything that this was built from.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn stamp(&self) -> Result<String> {
        let path = self.directory.join("stamp");
        fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))
    }
}

/// Builds one flavour, or finds that it is up to date.
///
/// # Errors
/// Whatever a step can fail with: see [`ErrorKind`].
pub fn build(
    layout: &Layout,
    flavour: Flavour,
    progress: &mut dyn FnMut(&str),
) -> Result<Collector> {
    let directory = layout.collector(flavour);
    fs::create_dir_all(&directory).map_err(|e| Error::io("create", &directory, &e))?;
    let _lock = lock(&directory)?;

    let patches =
        if flavour.is_patched() { series::patches(&layout.series())? } else { Vec::new() };
    let upstream = Upstream::acquire(layout, progress)?;
    let library = if flavour.is_patched() {
        progress(&format!("{flavour}: libbarchan (cargo build --release)"));
        Some(LibBarchan::build(layout)?)
    } else {
        None
    };

    let wanted = stamp(flavour, &upstream, &patches, library.as_ref(), &directory)?;
    let stamp_file = directory.join("stamp");
    let note_sources = |directory: &Path| {
        let path = directory.join("sources");
        fs::write(&path, sources(layout)?).map_err(|e| Error::io("write", &path, &e))
    };
    if fs::read_to_string(&stamp_file).is_ok_and(|found| found == wanted) {
        note_sources(&directory)?;
        progress(&format!("{flavour}: up to date"));
        return Ok(Collector { flavour, directory });
    }
    remove(&stamp_file)?;
    let job = Job { flavour, directory, library };
    job.prepare_source(&upstream, &patches, progress)?;
    job.compile(progress)?;
    job.verify()?;
    note_sources(&job.directory)?;
    fs::write(&stamp_file, wanted).map_err(|e| Error::io("write", &stamp_file, &e))?;
    progress(&format!("{flavour}: installed in {}", job.prefix().display()));
    Ok(Collector { flavour, directory: job.directory })
}

/// Waits until no other process builds in `directory`; released when dropped.
fn lock(directory: &Path) -> Result<fs::File> {
    let path = directory.join("lock");
    let file = fs::File::create(&path).map_err(|e| Error::io("create", &path, &e))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|e| Error::io("lock", &path, &e.into()))?;
    Ok(file)
}

/// The hash of all that goes into a build.
fn stamp(
    flavour: Flavour,
    upstream: &Upstream,
    patches: &[PathBuf],
    library: Option<&LibBarchan>,
    directory: &Path,
) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    add(RECIPE);
    add(&directory.to_string_lossy()); // the prefix is written into bdw-gc.pc
    add(upstream.hash());
    for definition in flavour.definitions() {
        add(&definition);
    }
    for patch in patches {
        add(&hash_file(patch)?);
    }
    if let Some(library) = library {
        add(&library.hash()?);
    }
    add(&Tool::new("cc").arg("--version").run()?);
    Ok(hex(&hash.finalize()))
}

/// The hash of what the patched flavours are made of in this checkout, as far as it can be told without building.
fn sources(layout: &Layout) -> Result<String> {
    let crates =
        ["barchan", "barchan-c", "dune-abi"].map(|name| layout.root().join("crates").join(name));
    let trees = crates.iter().map(|path| path.join("src")).chain([layout.series()]);
    trees.map(|tree| hash_tree(&tree)).collect::<Result<Vec<_>>>().map(|hashes| hashes.join("\n"))
}

/// One build that has to be done.
struct Job {
    flavour: Flavour,
    directory: PathBuf,
    library: Option<LibBarchan>,
}

impl Job {
    fn source(&self) -> PathBuf {
        self.directory.join("source")
    }

    fn prefix(&self) -> PathBuf {
        self.directory.join("prefix")
    }

    fn log(&self, step: &str) -> PathBuf {
        self.directory.join("log").join(format!("{step}.log"))
    }

    /// Makes a fresh copy of the source and applies the series to it.
    fn prepare_source(
        &self,
        upstream: &Upstream,
        patches: &[PathBuf],
        progress: &mut dyn FnMut(&str),
    ) -> Result<()> {
        for stale in ["source", "shared", "static", "static-prefix", "prefix", "log"] {
            remove(&self.directory.join(stale))?;
        }
        copy_tree(upstream.source(), &self.source())?;
        let fit = if upstream.is_pinned() { Fit::Exact } else { Fit::Moved };
        for patch in patches {
            series::apply(&self.source(), patch, fit)?;
        }
        if !patches.is_empty() {
            progress(&format!("{}: {} patches applied, no fuzz", self.flavour, patches.len()));
        }
        Ok(())
    }

    /// Both cmake trees, installed into the prefix.
    fn compile(&self, progress: &mut dyn FnMut(&str)) -> Result<()> {
        progress(&format!("{}: shared libraries and tests (cmake)", self.flavour));
        self.cmake("shared", &self.prefix(), SHARED_TREE)?;

        // The second install would overwrite headers and cmake files with its own:
        // it gets a prefix apart, of which only the archives are taken.
        progress(&format!("{}: static libraries (cmake)", self.flavour));
        let apart = self.directory.join("static-prefix");
        self.cmake("static", &apart, &["GC_BUILD_SHARED_LIBS=OFF", "BUILD_TESTING=OFF"])?;
        for archive in STATIC {
            let (from, to) = (apart.join("lib").join(archive), self.prefix().join("lib"));
            let to = to.join(archive);
            fs::copy(&from, &to).map_err(|e| Error::io("install", &to, &e))?;
        }
        remove(&apart)?;
        match &self.library {
            Some(library) => library.install(&self.prefix()),
            None => Ok(()),
        }
    }

    fn cmake(&self, tree: &str, prefix: &Path, definitions: &[&str]) -> Result<()> {
        let build = self.directory.join(tree);
        let mut configure = Tool::new("cmake").arg("-S").arg(self.source()).arg("-B").arg(&build);
        for definition in self.flavour.definitions() {
            configure = configure.arg(format!("-D{definition}"));
        }
        for definition in definitions {
            configure = configure.arg(format!("-D{definition}"));
        }
        configure = configure.arg(format!("-DCMAKE_INSTALL_PREFIX={}", prefix.display()));
        if let Some(library) = &self.library {
            configure = configure
                .arg(format!("-DBARCHAN_LIBRARY={}", library.static_lib().display()))
                .arg(format!("-DBARCHAN_INCLUDE_DIR={}", library.include().display()));
        }
        configure.log(self.log(&format!("{tree}-configure"))).run()?;

        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        Tool::new("cmake")
            .arg("--build")
            .arg(&build)
            .arg("--parallel")
            .arg(jobs.to_string())
            .log(self.log(&format!("{tree}-compile")))
            .run()?;
        Tool::new("cmake")
            .arg("--install")
            .arg(&build)
            .log(self.log(&format!("{tree}-install")))
            .run()
            .map(drop)
    }

    /// Checks that the prefix holds what programs look for.
    fn verify(&self) -> Result<()> {
        let lib = self.prefix().join("lib");
        for name in SHARED {
            let found = elf::soname(&lib.join(name))?;
            if found != *name {
                return Err(Error::new(
                    ErrorKind::BadResult,
                    format!("{name} was built with the soname {found}"),
                )
                .remedy("set LIBGC_SHARED_VERSION and the like in the source's CMakeLists.txt"));
            }
        }
        for wanted in ["include/gc.h", "include/gc/gc.h", "lib/pkgconfig/bdw-gc.pc"] {
            let path = self.prefix().join(wanted);
            if !path.is_file() {
                return Err(Error::new(
                    ErrorKind::BadResult,
                    format!("the collector was installed without {wanted}"),
                ));
            }
        }
        Ok(())
    }
}

/// Removes a file or a whole directory; it need not be there.
fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_of_other_patches_is_not_current() {
        let root = tempfile::tempdir().expect("temporary directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("created");
            fs::write(path, text).expect("written");
        };
        write("boehm-patch/upstream/Cargo.toml", "");
        write("boehm-patch/series/0001-one.patch", "one");
        for name in ["barchan", "barchan-c", "dune-abi"] {
            write(&format!("crates/{name}/src/lib.rs"), "");
        }
        let layout = Layout::new(root.path()).expect("a checkout");
        let directory = root.path().join("built");
        write("built/sources", &sources(&layout).expect("hashes"));
        let of = |flavour| Collector { flavour, directory: directory.clone() };
        let is_current = |collector: Collector| collector.is_current(&layout).expect("hashes");
        assert!(is_current(of(Flavour::PATCHED)) && is_current(of(Flavour::STOCK)));
        write("crates/barchan/src/lib.rs", "// mended");
        assert!(!is_current(of(Flavour::PATCHED)) && is_current(of(Flavour::STOCK)));
        write("crates/barchan/src/lib.rs", "");
        assert!(is_current(of(Flavour::PATCHED)));
        write("boehm-patch/series/0002-two.patch", "two");
        assert!(!is_current(of(Flavour::PATCHED)));
    }
}
