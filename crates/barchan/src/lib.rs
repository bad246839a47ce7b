//! Sound write tracking: which pages of this process' memory were written since they were last
//! asked about, for garbage collectors and others who must not miss one.
//!
//! A [`Tracker`] has one [`Source`] of dirty bits, chosen by trying them; it makes [`Region`]s,
//! which own the tracking of a range. The promises, for every source the same, are those of
//! [`WriteTracker`]: reports may name too many pages, never too few.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(not(target_os = "linux"))]
compile_error!("barchan tracks writes by the means of Linux");

pub mod bitmap;
mod error;
mod page_range;
pub mod policy;
mod source;
mod stats;
mod write_tracker;

#[cfg(feature = "std")]
mod os;
#[cfg(feature = "std")]
mod probe;
#[cfg(feature = "std")]
mod region;
#[cfg(feature = "std")]
mod sources;
#[cfg(feature = "std")]
mod tracker;

pub use error::{Errno, ErrorKind, OpenError, RegionError, Unavailable};
pub use page_range::{PAGE_SIZE, PageRange, RangeError};
pub use policy::{HotPagePolicy, HotPages};
pub use source::{KernelWrites, Source, UnknownSource};
pub use stats::Stats;
pub use write_tracker::WriteTracker;

#[cfg(feature = "std")]
pub use probe::probe;
#[cfg(feature = "std")]
pub use region::{Collected, Region};
#[cfg(feature = "std")]
pub use tracker::{Builder, ENV, Tracker};
