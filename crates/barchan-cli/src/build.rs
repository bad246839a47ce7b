//! `barchan build`: the collectors, the workloads and the preloaded object of `run`.

use std::path::PathBuf;
use std::process::ExitCode;

use barchan_boehm::tool::Tool;
use barchan_boehm::{Collector, Error, ErrorKind, Flavour, Layout, Result};

use crate::cli::{BuildArgs, Part};
use crate::{machine, note};

/// What a plain `barchan build` makes: all but the soft-dirty variant, which is of use
/// only where the kernel has soft-dirty bits.
fn default_parts() -> Vec<Part> {
    let mut parts = vec![Part::Stock, Part::Patched, Part::Workloads];
    if machine::has_soft_dirty() {
        parts.push(Part::StockSoftDirty);
    }
    parts
}

/// Runs the subcommand.
pub(crate) fn command(layout: &Layout, args: &BuildArgs) -> Result<ExitCode> {
    let parts = if args.only.is_empty() { default_parts() } else { args.only.clone() };
    for part in parts {
        build_part(layout, part, args.assertions)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn progress(line: &str) {
    note(format_args!("{line}"));
}

fn build_part(layout: &Layout, part: Part, assertions: bool) -> Result<()> {
    let flavour = match part {
        Part::Stock => Flavour::STOCK,
        Part::StockSoftDirty => Flavour::STOCK_SOFT_DIRTY,
        Part::Patched => Flavour::PATCHED,
        Part::Workloads => return workloads(layout),
    };
    collector(layout, flavour.with_assertions(assertions))?;
    if part == Part::Patched {
        // What `run` and `bench` need to tell what it did.
        preload(layout)?;
    }
    Ok(())
}

/// Builds one flavour of the collector, showing its progress.
pub(crate) fn collector(layout: &Layout, flavour: Flavour) -> Result<barchan_boehm::Collector> {
    barchan_boehm::build(layout, flavour, &mut progress)
}

/// Builds the benchmark programs against the pinned upstream's headers and library; they
/// use only what every collector here exports, and `LD_LIBRARY_PATH` chooses the one.
pub(crate) fn workloads(layout: &Layout) -> Result<()> {
    let source = layout.workloads_source();
    if !source.join("Makefile").is_file() {
        return Err(Error::new(ErrorKind::Missing, format!("no Makefile in {}", source.display()))
            .remedy("restore workloads/ from version control"));
    }
    let stock = collector(layout, Flavour::STOCK)?;
    let out = layout.workloads();
    std::fs::create_dir_all(&out).map_err(|e| Error::io("create", &out, &e))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    progress(&format!("workloads: make, into {}", out.display()));
    Tool::new("make")
        .arg("-C")
        .arg(&source)
        .arg(format!("-j{jobs}"))
        .arg(format!("OUT={}", out.display()))
        .arg(format!("GC_CFLAGS=-I{}", stock.prefix().join("include").display()))
        .arg(format!("GC_LIBS=-L{} -lgc", stock.library_dir().display()))
        .log(out.join("make.log"))
        .run()
        .map(drop)
        .map_err(|e| e.remedy("the XML workload needs expat: apt-get install libexpat1-dev"))
}

/// Whether a collector was built from other patches, or another library, than are here now.
pub(crate) fn is_outdated(layout: &Layout, built: &Collector) -> bool {
    built.is_current(layout).is_ok_and(|is_current| !is_current)
}

/// Says so; it is used all the same.
pub(crate) fn warn_if_outdated(layout: &Layout, built: &Collector) {
    if is_outdated(layout, built) {
        note(format_args!(
            "warning: the {} collector was built from other patches, or another library, than are \
             here now; do this: barchan build",
            built.flavour()
        ));
    }
}

/// Compiles the object that `barchan run` preloads; done again when its source is newer.
pub(crate) fn preload(layout: &Layout) -> Result<PathBuf> {
    let source = layout.root().join("crates/barchan-cli/preload/summary.c");
    let object = layout.preload();
    let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified());
    let newest = modified(&source).map_err(|e| Error::io("look at", &source, &e))?;
    if modified(&object).is_ok_and(|built| built > newest) {
        return Ok(object);
    }
    let dir = layout.build().join("preload");
    std::fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, &e))?;
    // Compiled under another name and renamed: a run that starts meanwhile never sees half.
    let fresh = dir.join(format!("fresh-{}.so", std::process::id()));
    Tool::new("cc")
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"])
        .args(["-fvisibility=hidden", "-o"])
        .arg(&fresh)
        .arg(&source)
        .arg("-ldl")
        .run()?;
    std::fs::rename(&fresh, &object).map_err(|e| Error::io("create", &object, &e))?;
    Ok(object)
}

/// The library that `barchan run --dune` preloads, if it has been built.
pub(crate) fn built_dune_library(layout: &Layout) -> Option<PathBuf> {
    Some(layout.dune_library()).filter(|path| path.is_file())
}

/// Builds that library; cargo does nothing if it is up to date. Where cargo cannot, what it has built is taken.
pub(crate) fn dune_library(layout: &Layout) -> Result<PathBuf> {
    let said = Tool::cargo()
        .args(["build", "--release", "--package", "dune-preload"])
        .arg("--message-format=json-render-diagnostics")
        .arg("--manifest-path")
        .arg(layout.root().join("Cargo.toml"))
        .run();
    let said = match (said, built_dune_library(layout)) {
        (Err(error), Some(library)) => {
            if error.kind() != ErrorKind::ToolMissing {
                note(format_args!(
                    "warning: {} is taken as it is, since cargo cannot build it anew; what it says: \
                     cargo build --release --package dune-preload",
                    library.display()
                ));
            }
            return Ok(library);
        }
        (said, _) => said?,
    };
    said.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "barchan_dune")
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|name| name.as_str().map(PathBuf::from))
        .find(|path| path.extension().is_some_and(|extension| extension == "so"))
        .ok_or_else(|| {
            Error::new(ErrorKind::BadResult, "dune-preload was built without a library")
                .tried("cargo build --release --package dune-preload")
        })
}
