//! Builds the collector: the pinned upstream, Barchan's patch series, an install prefix.
//!
//! Upstream is bdwgc (the Boehm–Demers–Weiser collector), pinned by hash and fetched
//! by cargo. [`build`] copies it, applies the series strictly, and compiles one
//! [`Flavour`] with the flags of a distribution into a prefix with `libgc.so.1`,
//! `libgccpp.so.1`, `libcord.so.1`, static libraries, headers and `bdw-gc.pc`. Nothing
//! outside the build directory is written to, and nothing is installed in the system.
//!
//! This is a library for the command `barchan`, for `cargo xtask` and for tests. It is
//! no build script and no binding: programs use the collector through its own C
//! headers.
//!
//! | Module | Holds |
//! |---|---|
//! | [`layout`] | where everything is |
//! | [`upstream`] | the pinned source, found and verified |
//! | [`series`] | the patches, applied exactly |
//! | [`flavour`] | what is built, with which flags |
//! | [`builder`] | the steps of a build |
//! | [`libbarchan`] | Barchan's C library, built and installed |
//! | [`system`] | the collector that the distribution installed |
//! | [`tool`], [`tree`], [`elf`], [`error`] | programs, file trees, binaries, failures |

#![forbid(unsafe_code)]

pub mod builder;
pub mod elf;
pub mod error;
pub mod flavour;
pub mod layout;
pub mod libbarchan;
pub mod series;
pub mod system;
pub mod tool;
pub mod tree;
pub mod upstream;

pub use builder::{Collector, build};
pub use error::{Error, ErrorKind, Result};
pub use flavour::{Checks, Flavour, Strategy};
pub use layout::Layout;
pub use system::SystemCollector;
