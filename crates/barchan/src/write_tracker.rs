//! The one trait that every dirty-bit source implements, and the semantics that all of them keep.

#[cfg(feature = "std")]
use crate::bitmap;
use crate::bitmap::{runs, words_for};
use crate::{PageRange, RegionError, Source};

/// Tracks the writes to one range of memory.
///
/// # What it promises
///
/// Every page is *clean* or *dirty*. A page is dirty if it is *unarmed* (new, disarmed, replaced,
/// or given up on) or was written since it was armed. Reports may say dirty of a page that is
/// clean (over-reporting); they never say clean of a page that is dirty (under-reporting).
///
/// A *write* is anything that may change the bytes that a load sees: a store by any thread, a
/// store by the kernel for a system call (`read`, `recv`, `getrandom`, `process_vm_writev`; see
/// [`KernelWrites`](crate::KernelWrites) for sources that make such a call fail instead), and the
/// kernel's dropping of the contents (`MADV_DONTNEED`, `MADV_FREE` once it takes effect; see
/// [`Source::sees_discards`] for the sources that must be told by [`Self::remapped`]).
/// Swapping a page out and in is not a write, but may be reported as one.
///
/// What is not seen:
/// - by any source but all-dirty: writes of devices, and of the kernel to `io_uring` or `O_DIRECT`
///   buffers, through pages pinned *before* they were armed (unpin first, or disarm those pages);
/// - by pagemap-scan, userfaultfd and mprotect, maybe: those of a `process_vm_writev`, a debugger (`ptrace`) or a store through
///   `/proc/PID/mem` that is *in flight* while the page is armed or collected. The kernel pins the page, may then sleep on
///   what it copies from, and stores past the protection that came meanwhile (let such calls end first, or disarm
///   those pages). One that begins after the call, or has returned before, is seen;
/// - by soft-dirty, on Linux 6.12 to about 6.17: zeros that were stored to a huge page that was there before it was
///   tracked, if the kernel splits that for want of memory;
/// - by mprotect: those of a debugger, or of a program to its own `/proc/self/mem`, which the
///   kernel lets pass the protection;
/// - by guest-pte, guest-pml, guest-tlb and guest-direct: those of another process (a debugger, `process_vm_writev` from
///   outside), which do not go through the guest's page tables.
///
/// # What before, after and concurrent mean
///
/// Let `C1`, `C2`, ... be the calls of [`collect_and_reset`](Self::collect_and_reset) that cover a
/// page. A write that happens before `Ci` begins (in the sense of the memory model, or because the
/// writer was stopped) and after `Ci-1` returned is in the report of `Ci`. A write concurrent with
/// `Ci` is in the report of `Ci` or of `Ci+1` (or both). If it is in the report of `Ci` only, then
/// its bytes are visible to whoever reads the page after `Ci` returned: so a collector that reads
/// the pages after the call has either seen the bytes or will be told again. No write is lost
/// between read and reset.
///
/// [`arm`](Self::arm) makes pages clean without saying whether they were dirty: writes that happen
/// before it or concurrently with it may go unreported. The caller stops the writers, or does not
/// care for what they wrote until then, or uses `collect_and_reset`.
///
/// [`peek`](Self::peek) reports writes that happened before it and changes nothing. A page that a concurrent call makes clean
/// it may find clean already: what was written to it is that call's to report, what is written after the peek is reported.
///
/// # Soft-dirty is different
///
/// Its reset is a separate, process-wide step, and a write between the read and the reset would be
/// lost. So there `collect_and_reset` reports and resets nothing; only
/// [`collect_and_reset_stopped`](Self::collect_and_reset_stopped), whose caller vouches that nobody
/// writes, resets. For the other sources the two are the same.
///
/// # Forks
///
/// In a forked child, however made, every page is dirty until armed again there. The parent is not
/// affected by what the child does.
///
/// # Threads and signals
///
/// All methods that take `&self` may be called from any thread, also concurrently. They neither
/// allocate nor take a lock that a thread stopped by a signal could hold, so they work in a stopped
/// world. They are not for signal handlers. (A handler that forks in the middle of one is allowed: the child then goes
/// on with the call, which may be an error there, and has everything dirty.)
///
/// They block all signals of the calling thread for some steps: its stack must not lie in armed pages whose
/// faults are signals (mprotect's).
///
/// # Bitmaps
///
/// Bit *i* (least significant first) is page *i* of the range given. Bits are ORed in.
pub trait WriteTracker: Send + Sync {
    /// The source behind it.
    fn source(&self) -> Source;

    /// The bounds.
    fn range(&self) -> PageRange;

    /// Makes the pages of `range` clean: from the return on, writes to them are reported.
    ///
    /// # Errors
    /// If `range` is not within the bounds, or the kernel refuses. Then every page of the range is
    /// dirty or clean, as it happens, and no write after the return is lost.
    fn arm(&self, range: PageRange) -> Result<(), RegionError>;

    /// As [`arm`](Self::arm), for those pages of `range` only whose bit in `among` is set. Where arming ends
    /// in a flush, all of them need one.
    ///
    /// # Errors
    /// As [`arm`](Self::arm), or if `among` is too small.
    fn arm_among(&self, range: PageRange, among: &[u64]) -> Result<(), RegionError> {
        let needed = words_for(range.pages());
        if among.len() < needed {
            return Err(RegionError::BitmapTooSmall { needed, given: among.len() });
        }
        runs(among, range.pages())
            .try_for_each(|(first, count)| self.arm(range.slice(first, count)))
    }

    /// Makes the pages of `range` dirty until they are armed again; writing to them costs nothing.
    ///
    /// # Errors
    /// If `range` is not within the bounds, or the kernel refuses (see [`remapped`](Self::remapped) for EBUSY). Then some
    /// pages may still be armed.
    fn disarm(&self, range: PageRange) -> Result<(), RegionError>;

    /// ORs the dirty pages of `range` into `bits`; changes nothing.
    ///
    /// # Errors
    /// If `range` is not within the bounds, or `bits` is too small.
    fn peek(&self, range: PageRange, bits: &mut [u64]) -> Result<(), RegionError>;

    /// ORs the dirty pages of `range` into `bits` and arms exactly them, losing no write between
    /// the two; returns how many were dirty.
    ///
    /// # Errors
    /// If `range` is not within the bounds, `bits` is too small, or the kernel refuses. In the
    /// last case every page that may be dirty is in `bits` all the same, and stays dirty.
    fn collect_and_reset(&self, range: PageRange, bits: &mut [u64]) -> Result<usize, RegionError>;

    /// As [`collect_and_reset`](Self::collect_and_reset), for a caller who vouches that nobody
    /// writes meanwhile. Only soft-dirty needs the promise to be able to reset.
    ///
    /// # Safety
    /// No thread, system call or other process writes to *any* region of *any* tracker of the process with this
    /// source during the call; nor does `bits` lie in one. (A write that breaks this may never be reported, and whoever trusts the report may
    /// then use memory that it believes unreachable.)
    ///
    /// # Errors
    /// As [`collect_and_reset`](Self::collect_and_reset).
    unsafe fn collect_and_reset_stopped(
        &self,
        range: PageRange,
        bits: &mut [u64],
    ) -> Result<usize, RegionError> {
        self.collect_and_reset(range, bits)
    }

    /// Says that the mappings of `range` were replaced (`mmap` over it, `mremap`): its pages are
    /// tracked anew, unarmed.
    ///
    /// # Errors
    /// If `range` is not within the bounds, or the kernel refuses. Then nothing is known of the pages of `range`: the
    /// caller takes them as dirty, until a later call succeeds. (EBUSY under pagemap-scan: another userfaultfd has the
    /// pages. After the program has closed all its descriptors that may be the tracker's former one, which a child
    /// forked before still holds; [`disarm`](Self::disarm) and `Tracker::track` fail so too, until that child ends or
    /// executes another program. Writes to pages that were not replaced are reported all the same.)
    fn remapped(&self, range: PageRange) -> Result<(), RegionError>;

    /// Changes the bounds. Pages in both keep their state; new pages are unarmed; pages that are
    /// left out are given back unprotected.
    ///
    /// # Safety
    /// As for `Tracker::track`, for the new bounds.
    ///
    /// # Errors
    /// If the kernel refuses; the bounds are then as before.
    unsafe fn resize(&mut self, bounds: PageRange) -> Result<(), RegionError>;
}

/// Refuses a `range` that is not within `bounds`.
#[cfg(feature = "std")]
pub(crate) fn check_inside(bounds: PageRange, range: PageRange) -> Result<(), RegionError> {
    if bounds.contains(&range) {
        Ok(())
    } else {
        Err(RegionError::Outside { asked: range, region: bounds })
    }
}

/// Refuses a `range` that is not within `bounds`, or a bitmap that does not hold it.
#[cfg(feature = "std")]
pub(crate) fn check_bitmap(
    bounds: PageRange,
    range: PageRange,
    bits: &[u64],
) -> Result<(), RegionError> {
    check_inside(bounds, range)?;
    let needed = bitmap::words_for(range.pages());
    if bits.len() < needed {
        return Err(RegionError::BitmapTooSmall { needed, given: bits.len() });
    }
    Ok(())
}
