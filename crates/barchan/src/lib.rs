//! Sound write tracking: which pages of this process' memory were written since they were last
//! asked about, for garbage collectors and others who must not miss one.
//!
//! A [`Tracker`] has one [`Source`] of dirty bits, chosen by trying them; it makes [`Region`]s,
//! which own the tracking of a range. The promises, for every source the same, are those of
//! [`WriteTracker`]: reports may name too many pages, never too few.
//!
//! ```
//! use barchan::{PAGE_SIZE, PageRange, Tracker};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let start = unsafe {
//! #     let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
//! #     libc::mmap(std::ptr::null_mut(), 64 * PAGE_SIZE, prot, flags, -1, 0) as usize
//! # };
//! let tracker = Tracker::open()?;
//! let heap = PageRange::new(start, 64 * PAGE_SIZE)?;
//! // SAFETY: the heap is private anonymous memory and stays mapped as long as the region.
//! let region = unsafe { tracker.track(heap)? };
//! let mut dirty = [0u64; 1];
//! region.collect_and_reset(heap, &mut dirty)?; // new pages are dirty
//! assert_eq!(dirty, [u64::MAX]);
//! // SAFETY: the page is ours.
//! unsafe { ((start + 5 * PAGE_SIZE) as *mut u8).write_volatile(1) };
//! dirty = [0];
//! region.collect_and_reset(heap, &mut dirty)?;
//! assert!(dirty[0] & 1 << 5 != 0);
//! # Ok(())
//! # }
//! ```
//!
//! # In a collector
//!
//! 1. [`Tracker::open`] once; if [`Tracker::kernel_writes`] is [`KernelWrites::Efault`], system calls must not
//!    write to armed pages.
//! 2. [`Tracker::track`] each part of the heap when it is mapped. Its pages are dirty.
//! 3. When marking is complete, with nobody having written since: [`Region::arm`] the pages of which writes are to
//!    be known, those with marked objects that hold pointers; then start the world. Leave the rest unarmed: it is
//!    dirty and costs nothing.
//! 4. Before free pages of an armed run are handed out: [`Region::disarm`] them, which saves the faults.
//! 5. At the next collection, the world stopped: [`Region::peek`], and take the marked objects on dirty pages as
//!    roots; then from 3. Or, with writers running (concurrent marking, pre-cleaning),
//!    [`Region::collect_and_reset`] *before* the pages are read: what is written later is reported again. (It arms
//!    all that it reports, new pages too.)
//!    Under soft-dirty only [`Region::collect_and_reset_stopped`] resets.
//! 6. After an `mmap` or `mremap` over a part: [`Region::remapped`]. An error of any call means: take its pages
//!    as dirty.
//!
//! # The sources
//!
//! In guest mode (`barchan run --dune`) there is one more, guest-pte: the dirty bits that the processor sets in
//! the guest's own page tables. It takes no fault where the host has nested paging, reports 4 KiB, works with
//! `read(2)`, sees `MADV_DONTNEED` and new mappings, uses no mappings and no thread, and is reset while others
//! write. What a first write costs depends on the host, so whether it or pagemap-scan is used there is
//! [measured](Measured).
//!
//! | | pagemap-scan | userfaultfd | soft-dirty | mprotect | all-dirty |
//! |---|---|---|---|---|---|
//! | needs | Linux 6.7 | Linux 5.14 | `CONFIG_MEM_SOFT_DIRTY` | nothing | nothing |
//! | first write to a clean page | a fault that the kernel resolves | a fault, two system calls and two thread switches | a fault that the kernel resolves | a signal and a system call | free |
//! | collecting | one ioctl a scan, atomic | 8 bytes a page are read, one ioctl a dirty run | 8 bytes a page are read; a reset walks the whole process | one `mprotect` a dirty run | free |
//! | resets while others write | yes | yes | no | yes | no need |
//! | `read(2)` into a clean page | works | works if the process may handle kernel faults, else `EFAULT` | works | `EFAULT` | works |
//! | `MADV_DONTNEED`, new mappings | seen | seen | must be told | must be told | seen |
//! | one store in a huge page reports | 4 KiB | 4 KiB | 2 MiB | 4 KiB | all |
//! | a store with SIGSEGV blocked | works | works | works | kills the process | works |
//! | `PROT_EXEC` of tracked pages | stays | stays | stays | is lost | stays |
//! | mappings used | none | none | from Linux 6.12 on one a region | one a run, up to `vm.max_map_count` | none |
//! | a thread of its own | no | yes: the process has several then | no | no | no |
//!
//! **Huge pages.** Arming a whole huge page keeps it; the first write to it, or arming a part,
//! splits it, so reports are of 4 KiB (but for soft-dirty, which has one bit for a huge page).
//! khugepaged leaves protected pages alone. The alternative, to report 2 MiB for one store, makes a collector look at 512 pages for one.
//! Memory of `hugetlbfs` is not supported.
//!
//! **Unprivileged use.** pagemap-scan and userfaultfd need no privilege and no
//! `vm.unprivileged_userfaultfd` (they ask for user-mode faults only where that is all they may
//! have); a process that is not dumpable, and one whose seccomp policy refuses the calls, is told
//! so by [`probe`] and gets the next source. A policy that *kills* on `userfaultfd`, rather than to refuse it, ends the
//! process in [`Tracker::open`]: name a source that does not need the call there ([`Builder::source`], [`ENV`]).
//!
//! **Forks.** A child, made by `fork` or a bare `clone`, has everything dirty until it arms; it
//! then opens descriptors of its own. The parent is not disturbed, not even if a signal handler forks in the middle of a
//! collection and the child goes on with it.
//!
//! **Cost control.** [`HotPages`] leaves pages unarmed that are dirty time after time.
//!
//! # Features
//!
//! `std` (default): everything that talks to the kernel. Without it the crate is `no_std` (with
//! `alloc`) and holds the bitmap arithmetic, the page ranges, the policy, the names and the errors.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(not(target_os = "linux"))]
compile_error!("barchan tracks writes by the means of Linux");

pub mod bitmap;
#[cfg(feature = "std")]
mod choice;
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
pub use stats::{Measured, Stats};
pub use write_tracker::WriteTracker;

#[cfg(feature = "std")]
pub use choice::measured;
#[cfg(feature = "std")]
pub use probe::probe;
#[cfg(feature = "std")]
pub use region::{Collected, Region};
#[cfg(feature = "std")]
pub use tracker::{Builder, ENV, Tracker};
