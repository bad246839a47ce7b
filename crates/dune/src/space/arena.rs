//! The monitor's own memory: one reserved range of the address space, so that it needs one window
//! and is told from the program's memory by comparing two addresses.
//!
//! | Part | Holds | In a forked child |
//! |---|---|---|
//! | [`SHARED`] | interrupt descriptors, stubs | wiped, made again |
//! | [`CPUS`] | for each virtual CPU its descriptors, task state and fault stack | wiped, made again |
//! | [`WINDOWS`] | which window of the address space has which guest-physical address | wiped |
//! | [`VMAS`] | the kernel's mappings, on kernels that must be asked for all at once | wiped |
//! | [`TABLES`] | page tables | wiped, filled again by faults |
//! | [`STACKS`] | for each thread its record and its monitor stack | kept: the child runs on one |
//!
//! Wiping (`MADV_WIPEONFORK`) is what makes a child's tables its own without copying: they are a
//! cache of what the kernel knows.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::host::{HostError, Step as _};
use crate::sys;

/// Threads that can be in guest mode at the same time.
pub(crate) const MAX_THREADS: usize = 1024;

/// A part of the arena: offset and length in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    offset: usize,
    pub(crate) len: usize,
}

const MIB: usize = 1 << 20;
/// Bytes of the whole.
const LEN: usize = 512 * MIB;
const ALIGN: usize = 1 << 30;

pub(crate) const SHARED: Part = Part { offset: 0, len: 2 * sys::PAGE_SIZE };
pub(crate) const CPUS: Part = Part { offset: MIB, len: MAX_THREADS * CPU_LEN };
/// Bytes of a CPU's area: a page of descriptors, a page of fault stack, and a stack for handlers.
pub(crate) const CPU_LEN: usize = 10 * sys::PAGE_SIZE;
pub(crate) const WINDOWS: Part = Part { offset: 44 * MIB, len: MIB };
pub(crate) const VMAS: Part = Part { offset: 46 * MIB, len: 4 * MIB };
pub(crate) const TABLES: Part = Part { offset: 50 * MIB, len: 206 * MIB };
/// Bytes of a thread's record and monitor stack; a power of two, and every one is aligned to it.
pub(crate) const STACK_LEN: usize = 256 * 1024;
pub(crate) const STACKS: Part = Part { offset: 256 * MIB, len: MAX_THREADS * STACK_LEN };

static BASE: AtomicUsize = AtomicUsize::new(0);

/// Reserves the arena, once for a process and its forked children.
pub(crate) fn reserve() -> Result<(), HostError> {
    if BASE.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    let base = sys::map_aligned(LEN, ALIGN, libc::PROT_NONE, libc::MAP_NORESERVE)
        .step("reserving 512 MiB of address space")?;
    for part in [SHARED, CPUS, WINDOWS, VMAS, TABLES] {
        // SAFETY: new memory of our own, empty so far.
        unsafe { sys::advise(base + part.offset, part.len, libc::MADV_WIPEONFORK) }
            .step("MADV_WIPEONFORK (Linux 4.14)")?;
        if part.offset != TABLES.offset {
            sys::protect(base + part.offset, part.len, libc::PROT_READ | libc::PROT_WRITE)
                .step("using the reserved address space")?;
        }
    }
    // Huge pages would make every forked child and every small program pay for 2 MiB.
    // SAFETY: advice that changes no content.
    let _ = unsafe { sys::advise(base, LEN, libc::MADV_NOHUGEPAGE) };
    BASE.store(base, Ordering::Release);
    Ok(())
}

/// Makes all of it zero but threads' records, as a forked child finds it: nothing uses it any more.
pub(crate) fn wipe() {
    for part in [SHARED, CPUS, WINDOWS, VMAS, TABLES] {
        // SAFETY: private memory of our own; the caller's promise.
        if let Err(errno) = unsafe { sys::discard(part.start(), part.len) } {
            // What is left there would be taken for what is.
            sys::text::fatal(format_args!(
                "barchan: the monitor's memory cannot be given back: {errno}\n"
            ));
        }
    }
}

/// Where the arena is; 0 before it is.
pub(crate) fn base() -> usize {
    BASE.load(Ordering::Acquire)
}

/// Whether `address` is the monitor's.
pub(crate) fn contains(address: usize) -> bool {
    let base = base();
    base != 0 && (base..base + LEN).contains(&address)
}

/// The whole range.
pub(crate) fn range() -> core::ops::Range<usize> {
    base()..base() + LEN
}

impl Part {
    /// Where it starts.
    pub(crate) fn start(self) -> usize {
        base() + self.offset
    }

    /// Whether `address` is in it.
    pub(crate) fn contains(self, address: usize) -> bool {
        base() != 0 && (self.start()..self.start() + self.len).contains(&address)
    }
}
