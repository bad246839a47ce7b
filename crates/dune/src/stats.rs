//! Counts of what guest mode cost: exits, faults, system calls.
//!
//! Relaxed counters, one set for a process. They say how much, not when.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::host::Exit;

/// The counters of a process.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Counters {
    /// Runs that ended, for whatever reason.
    pub exits: AtomicU64,
    /// System calls.
    pub calls: AtomicU64,
    /// Page faults that the monitor handled.
    pub faults: AtomicU64,
    /// Runs that a signal ended.
    pub interrupted: AtomicU64,
    /// Runs that ended because the host had no page where the tables had one.
    pub missing_pages: AtomicU64,
}

static COUNTERS: Counters = Counters {
    exits: AtomicU64::new(0),
    calls: AtomicU64::new(0),
    faults: AtomicU64::new(0),
    interrupted: AtomicU64::new(0),
    missing_pages: AtomicU64::new(0),
};

/// The counters of this process.
#[must_use]
pub fn counters() -> &'static Counters {
    &COUNTERS
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn exit(exit: Exit) {
    let counters = counters();
    add(&counters.exits);
    match exit {
        Exit::Port(crate::space::cpu_tables::PORT_SYSCALL) => add(&counters.calls),
        Exit::Interrupted => add(&counters.interrupted),
        Exit::NoMemory(_) => add(&counters.missing_pages),
        _ => {}
    }
}

pub(crate) fn page_fault() {
    add(&counters().faults);
}

/// Writes a message to standard error without a buffer, a lock or a heap.
pub fn report(message: core::fmt::Arguments<'_>) {
    crate::sys::text::report(message);
}
