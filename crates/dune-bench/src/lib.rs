//! The operations that guest mode is measured by: those of Tables 2 and 3 of Dune's paper (Belay et al.,
//! OSDI 2012), each natively and in guest mode.
//!
//! [`measure`] makes one measurement in the calling process, which must be there for nothing else:
//! entering guest mode cannot be undone, and handlers and protections stay behind. Who wants rounds starts
//! a process for each: `barchan bench paper` does, and `cargo bench -p barchan-benches --bench guest`
//! forks.
//!
//! | Module | Holds |
//! |---|---|
//! | [`row`] | the rows, and by which means each can be had |
//! | [`clock`] | the time stamp counter, and its rate |
//! | [`emulator`] | whether an emulator executes all this |
//! | [`memory`] | memory of 4 KiB pages |
//! | [`calls`] | system calls, and intercepting them |
//! | [`faults`] | page faults that the program handles itself: trap, appel1, appel2 |
//! | [`uffd`] | userfaultfd with SIGBUS, the other way to have them natively |
//! | [`walk`] | what a walk of the page tables costs |
//!
//! What it is not: a judge. It knows no figure of the paper and compares nothing.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("guest mode is for x86-64 Linux");

pub mod calls;
pub mod clock;
pub mod emulator;
pub mod faults;
pub mod memory;
pub mod row;
pub mod uffd;
pub mod walk;

use std::fmt;

use dune::stats::Snapshot;

use clock::Rate;
pub use row::{Means, Row};

/// What was measured of a row by one of its means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Ticks of the time stamp counter for one operation, the median of many.
    pub ticks: f64,
    /// Ticks in a second, by the kernel's monotonic clock.
    pub ticks_per_s: f64,
    /// Operations that the median is of.
    pub operations: u64,
    /// In guest mode: runs of the CPU that ended, for each operation.
    pub exits: Option<f64>,
    /// In guest mode: page faults that the monitor handled, for each operation.
    pub monitor_faults: Option<f64>,
}

/// What a measurement does over and over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timed {
    /// Ticks for one operation, the median.
    pub ticks: f64,
    /// Operations in all, those that only warm up included.
    pub operations: u64,
}

/// Why there is no measurement.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// This machine, or this process, has no such thing; one sentence that says why.
    Unavailable(String),
    /// It was measured, and what happened is not what was to be measured.
    Failed(String),
}

impl From<String> for Error {
    fn from(why: String) -> Self {
        Self::Unavailable(why)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unavailable(why) | Self::Failed(why)) = self;
        f.write_str(why)
    }
}

impl std::error::Error for Error {}

/// Measures `row` by `means`, in a process that is there for nothing else: signal handlers stay behind, and in
/// guest mode the process stays there.
///
/// # Errors
/// [`Error::Unavailable`] where it cannot be had, which a process with more than one thread cannot;
/// [`Error::Failed`] if a fault or a call was not handled as it should have been.
pub fn measure(row: Row, means: Means) -> Result<Sample, Error> {
    if !row.means().contains(&means) {
        return Err(format!("{} is not measured by {}", row.name(), means.name()).into());
    }
    let threads = std::fs::read_dir("/proc/self/task").map_or(2, Iterator::count);
    if threads != 1 {
        let why = format!("a measurement needs a process of one thread; this one has {threads}");
        return Err(why.into());
    }
    if means == Means::Guest {
        // SAFETY: 1. there is one thread. 2. What runs from here on is a measurement, and a caller who was told.
        unsafe { dune::enter() }.map_err(|error| error.to_string())?;
    }
    let before = Snapshot::current();
    let rate = Rate::start();
    let timed = timed(row, means)?;
    let after = Snapshot::current();
    let each = |count: u64| (means == Means::Guest).then(|| count as f64 / timed.operations as f64);
    Ok(Sample {
        ticks: timed.ticks,
        ticks_per_s: rate.end(),
        operations: timed.operations,
        exits: each(after.exits - before.exits),
        monitor_faults: each(after.faults - before.faults),
    })
}

fn timed(row: Row, means: Means) -> Result<Timed, Error> {
    match (row, means) {
        (Row::Getpid, _) | (Row::Ptrace, Means::Guest) => Ok(calls::getpid()),
        (Row::PageFault, _) => Ok(memory::first_touch()?),
        (Row::PageWalk, _) => Ok(walk::cost()?),
        (Row::Ptrace, Means::UserDispatch) => calls::user_dispatch(true),
        (Row::Sysemu, Means::UserDispatch) => calls::user_dispatch(false),
        (Row::Ptrace, _) => Ok(calls::ptrace(true)?),
        (Row::Sysemu, Means::Guest) => Ok(calls::answered_by_monitor()),
        (Row::Sysemu, _) => Ok(calls::ptrace(false)?),
        (Row::Trap, _) => faults::trap(means),
        (Row::Appel1, _) => faults::appel1(means),
        (Row::Appel2, _) => faults::appel2(means),
    }
}
